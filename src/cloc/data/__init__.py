"""Data: the contract (schema, tables, shards), storage, ingest, scenes, transforms, loader."""
