"""The commands, one module a group: each has add_flags(parser, verb) and run(arguments, verb) -> (exit code, result for
--json).
"""
