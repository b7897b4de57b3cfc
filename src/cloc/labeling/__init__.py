"""Labelling (VESL): captions, phrases, boxes, and the one resumable shard worker behind both stages."""
