"""How a person speaks: `octavo …`. Everything goes through octavo.client; nothing here opens a database."""
