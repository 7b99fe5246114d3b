"""The bundle on disk: its layout and records, its writer and archive, its fingerprint and its evidence."""
