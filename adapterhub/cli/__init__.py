"""The command line: parse, call one operation, print. No domain logic lives here."""
