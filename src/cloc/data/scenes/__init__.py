"""The embedded demo data set: rendered pictures of everyday objects with exact boxes, captions and noisy alt-text.

It stands in for photographs and their alt-text where the whole pipeline is to run in minutes. `stage.run` writes it;
everything follows from the seed, byte for byte, whatever the number of processes.
"""
