"""What does HTTP offer, and how is each request read, answered or refused?

A file for each resource. What blocks (database, store, log) runs in the threads of
`workers.api.call_pool`, what needs the model on the decode thread of `workers.query.server`.
"""
