"""Ingest: images with captions and boxes from elsewhere become a data set by the contract.

One reader a source (`folder`, `coco`) yields `Record`s; `writer` packs them into shards, in parallel and resumably.
"""
