"""Where the master key comes from. It never comes from the store that it opens."""

from broker.seal.providers.credential import CredentialKey
from broker.seal.providers.environment import EnvironmentKey
from broker.seal.providers.file import FileKey, create_key_file
from broker.seal.providers.memory import MemoryKey
from broker.seal.providers.protocol import KeyProvider

__all__ = ["CredentialKey", "EnvironmentKey", "FileKey", "KeyProvider", "MemoryKey", "create_key_file"]
