"""The people of the Hub of the tests, and their tokens."""

from dataclasses import dataclass

from hub_repositories import Repository

ACCEPTED, STRANGER, WRITER, READER = "hf_accepted", "hf_stranger", "hf_writer", "hf_reader"


@dataclass(frozen=True)
class Account:
    """Whose token it is, the token's role ("read" or "write"), and whether all that is private or gated is open to it."""

    name: str
    role: str = "read"
    organizations: tuple[str, ...] = ()
    accepted: bool = False

    def reads(self, repository: Repository) -> bool:
        return self.accepted or self.belongs_to(repository.name.split("/")[0])

    def writes_in(self, namespace: str) -> bool:
        return self.role == "write" and self.belongs_to(namespace)

    def belongs_to(self, namespace: str) -> bool:
        return namespace in (self.name, *self.organizations)


ACCOUNTS = {
    ACCEPTED: Account("accepted", accepted=True),
    STRANGER: Account("stranger", "write"),
    WRITER: Account("org-writer", "write", ("org",)),
    READER: Account("org-writer", "read", ("org",)),  # the same person's token for reading
}
