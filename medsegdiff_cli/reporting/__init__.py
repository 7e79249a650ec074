"""Reporting: tables, curves and contact sheets made from artefacts."""
