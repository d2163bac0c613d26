package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"
	"github.com/caddyserver/certmagic"
)

// Libraries that do part of what brokerauth does, each doing it the way its documentation shows. x/oauth2 is measured
// beside the root package, where it is required anyway.

// entra answers the discovery of endpoints and the token call as Microsoft Entra ID does.
type entra struct{}

func (entra) RoundTrip(r *http.Request) (*http.Response, error) {
	raw := base64.RawURLEncoding.EncodeToString
	body := `{"access_token":"a","token_type":"Bearer","expires_in":3600,"refresh_token":"r","scope":"https://graph.microsoft.com/.default",` +
		`"client_info":"` + raw([]byte(`{"uid":"u","utid":"t"}`)) + `",` +
		`"id_token":"` + raw([]byte(`{"alg":"none"}`)) + `.` + raw([]byte(`{"oid":"u","tid":"t","preferred_username":"u"}`)) + `."}`
	if strings.Contains(r.URL.Path, "openid-configuration") {
		const tenant = "https://login.microsoftonline.com/tenant"
		body = `{"issuer":"` + tenant + `/v2.0","authorization_endpoint":"` + tenant + `/oauth2/v2.0/authorize",` +
			`"token_endpoint":"` + tenant + `/oauth2/v2.0/token"}`
	}
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// BenchmarkMSAL gets a fresh token from the memory of Microsoft's library, its AcquireTokenSilent.
func BenchmarkMSAL(b *testing.B) {
	secret, err := confidential.NewCredFromSecret("secret")
	if err != nil {
		b.Fatal(err)
	}
	app, err := confidential.New("https://login.microsoftonline.com/tenant", "client", secret,
		confidential.WithHTTPClient(&http.Client{Transport: entra{}}), confidential.WithInstanceDiscovery(false))
	if err != nil {
		b.Fatal(err)
	}
	scopes := []string{"https://graph.microsoft.com/.default"}
	login, err := app.AcquireTokenByAuthCode(b.Context(), "code", "https://127.0.0.1:8182", scopes)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := app.AcquireTokenSilent(b.Context(), scopes, confidential.WithSilentAccount(login.Account)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCertmagic stores 2 KB in certmagic's file storage under its lock, as its users must; it does not compare, and
// does not sync the folder.
func BenchmarkCertmagic(b *testing.B) {
	storage := &certmagic.FileStorage{Path: b.TempDir()}
	record := bytes.Repeat([]byte("a"), 2048)
	store := func(ctx context.Context) error {
		if err := storage.Lock(ctx, "record"); err != nil {
			return err
		}
		if err := storage.Store(ctx, "record", record); err != nil {
			return err
		}
		return storage.Unlock(ctx, "record")
	}
	for b.Loop() {
		if err := store(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
