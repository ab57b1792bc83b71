"""Looking at data sets: contact sheets, verification, duplicates, export."""
