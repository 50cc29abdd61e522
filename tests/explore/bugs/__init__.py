"""Deliberate bugs of the protocol, which the explorer must find: `aristos explore --mutation` reads them here."""
