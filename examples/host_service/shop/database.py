"""The shop's own engine: what is the library's comes typed, what is the shop's stays as it is."""

from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session, sessionmaker

from orchestration.database import install_error_translation


def sessions(url: str | URL) -> sessionmaker[Session]:
    engine = create_engine(url)
    install_error_translation(engine)
    return sessionmaker(engine)
