"""authlib, unmodified, at an emulated Schwab or TD Ameritrade: as schwab-py and tda-api use it."""
import os
import time

import requests
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.requests_client import OAuth2Session

BASE, APP_KEY, APP_SECRET = (os.environ[name] for name in ("BASE", "APP_KEY", "APP_SECRET"))


def approve(url):
    """Opens the login page, presses Approve, and returns where the browser is sent."""
    assert "Approve" in requests.get(url).text
    sent = requests.post(url, data={"button": "approve"}, allow_redirects=False)
    assert sent.status_code == 302, sent.status_code
    return sent.headers["Location"]


def refused(call, error, description=""):
    try:
        call()
    except OAuthError as err:
        assert err.error == error, err
        assert description in err.description, err
        return
    raise AssertionError("not refused: want " + error)


def renewed(session, url):
    """Calls url after the token's end, at which the session renews it by itself."""
    before = session.token["access_token"]
    while not session.token.is_expired():
        time.sleep(0.05)
    assert session.get(url).status_code == 200
    assert session.token["access_token"] != before, "a refresh brings another access token"


def schwab():
    token_url, callback = BASE + "/v1/oauth/token", "https://127.0.0.1:8182"
    accounts = BASE + "/trader/v1/accounts/accountNumbers"
    login = OAuth2Session(APP_KEY, APP_SECRET, redirect_uri=callback)
    url, state = login.create_authorization_url(BASE + "/v1/oauth/authorize")
    back = approve(url)
    assert back.startswith(callback + "/?code="), "the callback as a browser shows it"
    exchange = dict(authorization_response=back, client_id=APP_KEY, auth=(APP_KEY, APP_SECRET), state=state)
    token = login.fetch_token(token_url, **exchange)
    assert set(token) == {"expires_in", "token_type", "scope", "refresh_token", "access_token", "id_token", "expires_at"}, set(token)
    assert token["scope"] == "api"
    refused(lambda: login.fetch_token(token_url, **exchange), "unsupported_token_type", "Bad authorization code")

    written = []
    session = OAuth2Session(APP_KEY, APP_SECRET, token=token, token_endpoint=token_url,
                            update_token=lambda t, refresh_token: written.append((t, refresh_token)))
    refresh = token["refresh_token"]
    renewed(session, accounts)
    (stored, old), = written
    assert old == refresh == stored["refresh_token"], "Schwab repeats the refresh token"

    wrong = OAuth2Session(APP_KEY, "not-the-secret", token=token)
    refused(lambda: wrong.refresh_token(token_url), "invalid_client", "Unauthorized")
    refused(lambda: session.refresh_token(token_url, refresh_token="nobody-issued-this"),
            "unsupported_token_type", "refresh_token_authentication_error")

    # A pasted address without a code makes authlib guess another grant, and Schwab fall for it.
    guessed = OAuth2Session(APP_KEY, APP_SECRET).fetch_token(token_url, authorization_response=callback + "/?nothing=1")
    assert guessed["expires_in"] == 3600 and "refresh_token" not in guessed and "id_token" not in guessed, set(guessed)


def tdameritrade():
    token_url, callback = BASE + "/v1/oauth2/token", "http://localhost:8080"
    accounts = BASE + "/v1/accounts"
    key = APP_KEY + "@AMER.OAUTHAP"
    login = OAuth2Session(key, redirect_uri=callback)
    url, state = login.create_authorization_url(BASE + "/auth")
    back = approve(url)
    token = login.fetch_token(token_url, authorization_response=back, access_type="offline", client_id=key, state=state)
    assert token["refresh_token_expires_in"] == 7776000
    assert token["scope"] == "PlaceTrades AccountAccess MoveMoney"

    written = []
    session = OAuth2Session(key, token=token, token_endpoint=token_url,
                            update_token=lambda t, refresh_token: written.append((t, refresh_token)))
    refresh = token["refresh_token"]
    renewed(session, accounts)
    (stored, old), = written
    assert old == refresh == stored["refresh_token"], "authlib keeps what the reply leaves out"

    # From day 85 on, tda-api asks for a new refresh token.
    anew = OAuth2Session(key, token=token).fetch_token(
        token_url, grant_type="refresh_token", refresh_token=refresh, access_type="offline")
    assert anew["refresh_token"] != refresh and anew["refresh_token_expires_in"] == 7776000
    refused(lambda: session.refresh_token(token_url, refresh_token="nobody-issued-this"), "invalid_grant")


{"schwab": schwab, "tdameritrade": tdameritrade}[os.environ["BROKER"]]()
