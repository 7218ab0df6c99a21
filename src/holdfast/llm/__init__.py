"""Models behind ``ctx.llm``: the providers' wire protocols, what a call costs, and which provider a model belongs
to."""
