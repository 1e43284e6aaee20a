"""Fuzzing of what a stranger's bytes reach first; `python -m tests.fuzz --help` says how.

targets      what is checked: one function of bytes for each target, by subject
reference    what it is checked against: slow, and plainly right
mutation     bytes from bytes, where nothing better is installed
guided       the child process in which atheris mutates, guided by coverage
campaign     a target, an engine and a time: what came of it
__main__     the command
corpus       what is tried first, a folder for each target, each file named for what it shows
"""
