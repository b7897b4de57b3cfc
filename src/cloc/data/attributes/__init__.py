"""Hard negatives from elsewhere (FG-OVD's files, JSON lines) become the table `attributes` of a data set.

`files` reads them, `shard` joins those of one shard with its images, `stage` goes over a data set.
"""
