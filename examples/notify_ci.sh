#!/bin/sh
# Runs a command and says in the chat whether it passed; exits as the command does.
#
# Run it:    examples/notify_ci.sh 127.0.0.1 9000 make test
# What it leaves out: who broke it, and a build that fails because the chat is away: that is one
# line on standard error and no more.

[ $# -ge 3 ] || { echo "usage: notify_ci.sh HOST PORT COMMAND [ARGUMENT ...]" >&2; exit 2; }
host=$1 port=$2
shift 2

"$@"
status=$?
[ $status -eq 0 ] && outcome=passed || outcome="failed with status $status"
multichat send --name ci "$host" "$port" "$outcome: $*"
exit $status
