"""Inspecting a data set: numbers, contact sheet, plot of its cameras, duplicates, verification."""
