"""The organism: tiny matched models that the project trains itself, with a known refusal circuit."""
