package brokerauth

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// clientTimeout bounds an API call of a Client made without a base, its body included.
const clientTimeout = 30 * time.Second

// Client returns an HTTP client that signs its requests with the Session's token; base says how requests are sent, nil
// meaning http.DefaultTransport and 30 seconds a call.
//
// The token goes only to the Provider's Origins: a request elsewhere fails, and a redirect elsewhere is followed
// unsigned. Where the API answers 401, one refresh is forced for that very token, and the request is sent once more if
// its body can be replayed and its method is idempotent as net/http sees it: GET, HEAD, OPTIONS, TRACE, or any with an
// Idempotency-Key header. Otherwise the 401 comes back as it came.
func (s *Session) Client(base *http.Client) *http.Client {
	c := &http.Client{Timeout: clientTimeout}
	if base != nil {
		*c = *base
	}
	t := &transport{session: s, base: c.Transport}
	if t.base == nil {
		t.base = http.DefaultTransport
	}
	if s.Provider != nil {
		info := s.Provider.Info()
		t.origins = info.Origins
		for _, o := range info.Origins {
			if scheme, host, ok := strings.Cut(o, "://"); ok {
				domain, wild := strings.CutPrefix(host, "*.")
				t.allowed = append(t.allowed, origin{scheme, domain, wild})
			}
		}
		if info.UserAgent != "" {
			t.userAgent = []string{info.UserAgent}
		}
	}
	c.Transport = t
	return c
}

// elsewhere is a Provider that knows what people look for who ask at another broker's address.
type elsewhere interface{ Elsewhere(address string) string }

type transport struct {
	session   *Session
	base      http.RoundTripper
	origins   []string
	allowed   []origin // the same, taken apart
	userAgent []string // the header's value; nil: net/http's
}

// origin is where a token may be sent.
type origin struct {
	scheme string
	host   string // with its port; of a wild one, what follows its first label
	wild   bool
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if !t.allows(req.URL) {
		if req.Response != nil {
			return t.base.RoundTrip(req) // a redirect: whoever the API named gets no token
		}
		closeBody(req)
		if _, err := t.session.key(); err != nil {
			return nil, err
		}
		hint := ""
		if p, ok := t.session.Provider.(elsewhere); ok {
			if s := p.Elsewhere(req.URL.Scheme + "://" + req.URL.Host + req.URL.EscapedPath()); s != "" {
				hint = ": " + s
			}
		}
		return nil, fmt.Errorf("brokerauth: a request to %s was not sent, because this login's token is only for %s%s",
			req.URL.Host, strings.Join(t.origins, ", "), hint)
	}
	p, err := t.session.signed(req)
	if err != nil {
		closeBody(req)
		return nil, err
	}
	resp, err := t.base.RoundTrip(t.sign(req, p))
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	next, err := t.session.after401(req, p.token)
	if err != nil || !replayable(req) {
		return resp, nil
	}
	again := t.sign(req, next)
	if req.GetBody != nil {
		if again.Body, err = req.GetBody(); err != nil {
			return resp, nil
		}
	}
	resp.Body.Close() // unread: it may never end
	return t.base.RoundTrip(again)
}

// CloseIdleConnections closes those of the base.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// signed returns what to sign req with.
func (s *Session) signed(req *http.Request) (*published, error) {
	if p := s.fresh(); p != nil {
		return p, nil
	}
	t, err := s.Token(req.Context())
	if err != nil {
		return nil, err
	}
	return &published{token: t, header: []string{t.header()}}, nil
}

// after401 gets a token to sign req with after refused was.
func (s *Session) after401(req *http.Request, refused *Token) (*published, error) {
	t, err := s.Refresh(req.Context(), refused)
	key, _ := s.key()
	s.emit(Event{Kind: "refused", Key: key, Token: fingerprint(refused.AccessToken), Err: err})
	if err != nil {
		return nil, err
	}
	return &published{token: t, header: []string{t.header()}}, nil
}

// sign returns a copy of req with the Authorization header. The copy shares what is not signed.
func (t *transport) sign(req *http.Request, p *published) *http.Request {
	c := *req
	if c.Header = maps.Clone(req.Header); c.Header == nil {
		c.Header = make(http.Header, 2)
	}
	if t.userAgent != nil {
		if _, own := c.Header["User-Agent"]; !own {
			c.Header["User-Agent"] = t.userAgent[:1:1]
		}
	}
	c.Header["Authorization"] = p.header[:1:1]
	return &c
}

// replayable reports whether req may be sent twice.
func replayable(req *http.Request) bool {
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		return false
	}
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	_, key := req.Header["Idempotency-Key"]
	_, x := req.Header["X-Idempotency-Key"]
	return key || x
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// allows reports whether u is at one of the origins, exactly: scheme, host and port.
func (t *transport) allows(u *url.URL) bool {
	if u.User != nil {
		return false
	}
	for _, o := range t.allowed {
		host := u.Host
		if o.wild {
			label, domain, ok := strings.Cut(host, ".")
			if !ok || label == "" {
				continue
			}
			host = domain
		}
		if host == o.host && u.Scheme == o.scheme {
			return true
		}
	}
	return false
}
