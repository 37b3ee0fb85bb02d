# Whether the server takes connections.
. /etc/loopwright/programs.sh
exec pg_isready --quiet --host=127.0.0.1 --port=5432
