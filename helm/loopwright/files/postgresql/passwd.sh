# Writes a passwd file that knows this pod's user, whatever its number: initdb refuses to run as a user without a name.
set -eu
uid=$(id -u)
grep -v "^[^:]*:[^:]*:$uid:" /etc/passwd > /etc-of-pod/passwd || true
echo "postgres-of-pod:x:$uid:$(id -g):PostgreSQL:/tmp:/bin/sh" >> /etc-of-pod/passwd
