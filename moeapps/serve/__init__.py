"""``moeapps serve``: a saved model behind HTTP, in a worker process that is restarted when it dies.

Built on FastAPI (validation against a schema, OpenAPI page) and uvicorn. The process that speaks HTTP imports no torch:
it checks requests and queues them. One worker process holds the model and answers them in batches.
"""
