"""Runs and losses that a team already has, as the two tables that the rest of mixlaw reads."""

from mixlaw.importers.table import UNITS, ImportedTables, import_tables, tables_from_frames

__all__ = ["UNITS", "ImportedTables", "import_tables", "tables_from_frames"]
