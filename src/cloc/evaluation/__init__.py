"""Stage: evaluation by protocols, one module each, with a report; and the gate before a model is registered."""
