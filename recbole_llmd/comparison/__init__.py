"""``recbole-llmd compare``: models on the same split with the same evaluator over several seeds, tested and shown."""
