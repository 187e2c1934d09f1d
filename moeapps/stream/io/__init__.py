"""Where events come from and where predictions go: files, standard input, Kafka, late labels."""
