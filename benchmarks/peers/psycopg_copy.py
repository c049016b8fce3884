"""psycopg's own binary COPY: reads a table as rows, and writes labels as rows, in one transaction each.

python psycopg_copy.py URI TABLE
"""

import json
import sys
import time

import psycopg


def main(uri, table):
    with psycopg.connect(uri) as connection:
        started = time.perf_counter()
        with connection.cursor().copy(f"COPY (SELECT id, text FROM {table}) TO STDOUT (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "text"])
            rows = list(copy.rows())
        read = time.perf_counter() - started
        labels = [(row[0], "ham", 0.9, False) for row in rows]
        connection.execute("CREATE TABLE copied (id int8, spam text, spam_score float4, spam_truncated bool)")
        connection.commit()
        started = time.perf_counter()
        with connection.cursor().copy("COPY copied FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "text", "float4", "bool"])
            for row in labels:
                copy.write_row(row)
        connection.commit()
        written = time.perf_counter() - started
    print(json.dumps({"psycopg_read": read, "psycopg_write": written}))


main(*sys.argv[1:])
