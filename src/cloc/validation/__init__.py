"""The gate between labelling and training: Great Expectations over a data set's tables, and a page that shows it.

`cloc.validation.stage.run` is the stage. Nothing outside this package imports great_expectations.
"""
