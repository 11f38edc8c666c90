"""What is kept in PostgreSQL, and how is it read and changed? Functions that take a connection.

Lock order, kept by every function here, so that writers wait for each other but never deadlock:

1. the set of generations: shared by whoever accepts images, exclusive for a change of state;
2. the deletions: shared by whoever accepts images, exclusive for who deletes some;
3. images, by ascending id;
4. counters of the whole database;
5. generations, ascending; and inside one generation its leaves, ascending, then its counters;
6. events and offsets of the log, last in a transaction.

Call `append` once per generation and transaction, generations ascending.

The isolation level is READ COMMITTED, PostgreSQL's default: a statement after a lock must see what
the transaction that it waited for has written. Only the follower reads at REPEATABLE READ.
"""
