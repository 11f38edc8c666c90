"""What is kept in PostgreSQL, and how is it read and changed? Functions that take a psycopg connection.

Lock order, kept by every function here so that writers wait but never deadlock: the set of generations (shared by whoever
accepts images, alone for a change of state), then images by id, then counters of the whole database, then generations
ascending, and inside one generation its leaves ascending, then its counters. Events and offsets come last in a transaction.
Call `append` once per generation and transaction, generations ascending.
The isolation level is READ COMMITTED, the default: a statement after a lock must see what the lock waited for.
"""
