"""What every argument, row, label, table and file goes through before it is believed; each check written once."""
