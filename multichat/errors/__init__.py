"""Every exception that multichat raises on purpose.  Pure.

The tree::

    MultichatError
    │
    │   misuse of the protocol
    ├── LocalProtocolError      by our caller
    │   ├── UnknownClient       no client has that number
    │   ├── NotPrivate          a passphrase, over a connection that others can read
    │   ├── InvalidBan          not a valid ban
    │   └── TooManyBans         the limit of bans is reached
    ├── RemoteProtocolError     by the peer: it gets an error and stays connected
    │   ├── LineTooLong         a line above the limit
    │   ├── InvalidRequest      not a valid request
    │   ├── UnknownRequest      an unknown type of request
    │   ├── EmptyText           a message without text
    │   ├── InvalidName         not a valid name
    │   ├── NameTaken           the name is in use, or belongs to an account
    │   ├── NameAssigned        the server's `authenticate` gave it another name
    │   ├── WrongPassphrase     no account has that name and passphrase
    │   ├── TooManyAttempts     too many logins are tried from there
    │   ├── LoginRequired       only accounts may speak
    │   ├── Insecure            a passphrase was sent in plain text
    │   ├── RegistrationClosed  accounts are made by operators only
    │   ├── TooManyRegistrations  a limit of accounts is reached
    │   ├── NotOperator         only operators may do that
    │   ├── TooManyRooms        the limit of rooms is reached
    │   ├── NobodyThere         the recipient is not connected
    │   ├── NotDelivered        the recipient's send queue is full
    │   ├── DeliveryUnknown     a private message may have been delivered or not
    │   ├── Rejected            a filter rejected a message, room or name
    │   ├── Banned              the name is banned
    │   ├── UnknownId           no message has that id
    │   ├── NotInRoom           the client is not in that room
    │   ├── LastRoom            the client is in no other room
    │   ├── NonceReused         the nonce belongs to another message
    │   ├── StorageFailed       the journal cannot store the message
    │   └── NotRead             the journal cannot be read
    │
    │   faults at the other end of a connection
    ├── Refused                 the server refused a request, or did not admit us
    ├── ConnectFailed           no connection could be made
    ├── ConnectionLost          the connection ended before a call was done
    ├── NoJson                  the server does not speak JSON, or does not answer
    │
    │   faults on this machine
    ├── ListenFailed            the address cannot be listened on
    ├── InvalidSettings         an invalid configuration file
    ├── InvalidBanFile          an invalid line in a ban file
    ├── ReloadFailed            a file was not reloaded
    ├── JournalFailed           the journal file cannot be used
    ├── BadCertificate          a certificate or key cannot be used
    ├── BadPasswordFile         a password file cannot be used
    ├── InputNotText            standard input cannot be decoded
    └── OutputLost              standard output cannot be written to

Any other exception out of a decoder or a session is a bug in multichat.
"""

from multichat.errors.base import (
    MultichatError,
    Remedy,
    lone_exception,
)
from multichat.errors.faults import (
    BadCertificate,
    BadPasswordFile,
    ConnectFailed,
    ConnectionLost,
    InputNotText,
    InvalidBanFile,
    InvalidSettings,
    JournalFailed,
    ListenFailed,
    NoJson,
    OutputLost,
    Refused,
    ReloadFailed,
)
from multichat.errors.protocol import (
    Banned,
    DeliveryUnknown,
    EmptyText,
    Insecure,
    InvalidBan,
    InvalidName,
    InvalidRequest,
    LastRoom,
    LineTooLong,
    LocalProtocolError,
    LoginRequired,
    NameAssigned,
    NameTaken,
    NobodyThere,
    NonceReused,
    NotDelivered,
    NotInRoom,
    NotOperator,
    NotPrivate,
    NotRead,
    RegistrationClosed,
    Rejected,
    RemoteProtocolError,
    StorageFailed,
    TooManyAttempts,
    TooManyBans,
    TooManyRegistrations,
    TooManyRooms,
    UnknownClient,
    UnknownId,
    UnknownRequest,
    WrongPassphrase,
)

__all__ = [
    "BadCertificate",
    "BadPasswordFile",
    "Banned",
    "ConnectFailed",
    "ConnectionLost",
    "DeliveryUnknown",
    "EmptyText",
    "InputNotText",
    "Insecure",
    "InvalidBan",
    "InvalidBanFile",
    "InvalidName",
    "InvalidRequest",
    "InvalidSettings",
    "JournalFailed",
    "LastRoom",
    "LineTooLong",
    "ListenFailed",
    "LocalProtocolError",
    "LoginRequired",
    "MultichatError",
    "NameAssigned",
    "NameTaken",
    "NoJson",
    "NobodyThere",
    "NonceReused",
    "NotDelivered",
    "NotInRoom",
    "NotOperator",
    "NotPrivate",
    "NotRead",
    "OutputLost",
    "Refused",
    "RegistrationClosed",
    "Rejected",
    "ReloadFailed",
    "Remedy",
    "RemoteProtocolError",
    "StorageFailed",
    "TooManyAttempts",
    "TooManyBans",
    "TooManyRegistrations",
    "TooManyRooms",
    "UnknownClient",
    "UnknownId",
    "UnknownRequest",
    "WrongPassphrase",
    "lone_exception",
]
