"""What does a person see in a browser?

Plain HTML, one style sheet and ES modules; nothing is built, and nothing comes from elsewhere.
`workers.api.page` serves the files; all they know they ask of the API.
"""
