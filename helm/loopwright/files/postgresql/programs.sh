# Puts PostgreSQL's programs on PATH: of the version that made the database, else the newest there is, else what PATH has already.
PGDATA=/var/lib/postgresql/data/pgdata
export PGDATA
found=""
if [ -s "$PGDATA/PG_VERSION" ]; then
    found="/usr/lib/postgresql/$(cat "$PGDATA/PG_VERSION")/bin"
fi
if [ ! -x "$found/postgres" ]; then
    found=""
    for folder in /usr/lib/postgresql/*/bin; do
        if [ -x "$folder/postgres" ]; then found="$folder"; fi
    done
fi
if [ -n "$found" ]; then
    PATH="$found:$PATH"
    export PATH
fi
