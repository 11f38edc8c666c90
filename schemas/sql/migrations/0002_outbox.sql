-- Events of a transaction that Kafka is to have: written with the rows, forwarded and deleted after the commit.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic text NOT NULL,
    key text NOT NULL,
    value bytea NOT NULL,
    headers jsonb NOT NULL DEFAULT '{}'
);

-- Dead letters are read from the log itself, whichever log that is.
DROP VIEW dead_letter;
