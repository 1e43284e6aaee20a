"""Fuzzes the code that parses untrusted bytes; see `python -m tests.fuzz --help`.

targets      the properties: one function of bytes for each target
reference    slow and simple reference implementations
mutation     a simple mutation engine, used if atheris is not installed
guided       the child process in which atheris mutates, guided by coverage
campaign     fuzzes one target with one engine for a time
__main__     the command
corpus       the initial inputs: a folder for each target, files named by what they show
"""
