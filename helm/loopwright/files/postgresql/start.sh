# Makes the database the first time, sets the password that the Secret holds now, and becomes the server.
set -eu
umask 077
. /etc/loopwright/programs.sh
password_file=/run/secrets/loopwright/password

# A quote within an SQL string is written twice.
password=$(sed "s/'/''/g" "$password_file")
if [ -z "$password" ]; then
    echo "the Secret's password is empty" >&2
    exit 1
fi

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # Made beside its place and moved there when it is whole: a kill in between leaves nothing half made.
    rm -rf "$PGDATA.new"
    # The superuser comes in by no password that anybody knows; the gateway's role owns its database and nothing else.
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > /tmp/superuser
    initdb --pgdata="$PGDATA.new" --username=postgres --pwfile=/tmp/superuser --auth=scram-sha-256 \
        --encoding=UTF8 --locale=C --data-checksums
    rm -f /tmp/superuser
    echo "host all all all scram-sha-256" >> "$PGDATA.new/pg_hba.conf"
    printf '%s\n' "CREATE ROLE loopwright LOGIN;" "CREATE DATABASE loopwright OWNER loopwright;" \
        | postgres --single -D "$PGDATA.new" postgres > /dev/null
    mv "$PGDATA.new" "$PGDATA"
fi

# The kubelet may have opened it to the volume's group, which the server refuses.
chmod 0700 "$PGDATA"
printf '%s\n' "ALTER ROLE loopwright PASSWORD '$password';" | postgres --single -D "$PGDATA" postgres > /dev/null
unset password

exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp -c logging_collector=off "$@"
