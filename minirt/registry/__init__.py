"""The distribution-spec client: names → manifests → blob streams, from Docker Hub or any other registry.

One pull, exchange by exchange:

    GET /v2/                                   is it a registry, and what authorization does it want?
    GET realm?service=…&scope=…                a token for this repository (where a `Bearer` challenge named a realm)
    GET /v2/<path>/manifests/<tag or digest>   a document; its bytes make its digest
    GET /v2/<path>/blobs/<digest>              often a redirect to a storage host; resumed by Range after a drop

    settings     the user's mirrors and insecure registries
    challenge    WWW-Authenticate, parsed
    credentials  what `docker login` left behind
    trust        whom https is taken from: certs.d
    auth         Anonymous, Basic, Bearer: objects that escalate on a 401
    guard        connections: where they may lead, how slowly an answer may come
    patience     another try: how often, after how long, and who hears of it
    transport    one exchange: redirects by hand, where credentials may go, what is worth another try
    client       the registry's verbs
    upload       the writing ones: a push, exchange by exchange

Nothing here touches the store. Taught in chapter 04.
"""
