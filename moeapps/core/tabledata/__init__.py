"""Tables as data: columns and their kinds, files, scoring. What tables, recsys and serve share."""
