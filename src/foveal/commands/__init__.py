"""The verbs of the command line: they parse, call the library, and print. Heavy imports wait until a verb runs."""
