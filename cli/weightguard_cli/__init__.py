"""The command line: parse, one core call, render. The only room that prints or exits."""
