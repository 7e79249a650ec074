"""The command line: one thin file a verb (parse, call, print). Heavy imports stay inside the commands."""
