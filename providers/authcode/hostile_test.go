package authcode_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

// hostile returns a provider with its own transport whose broker reads a request and then says whatever it likes. sent
// is how many bytes of it the client's side has taken.
func hostile(t *testing.T, say func(w io.Writer) error) (p *authcode.Provider, sent *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sent = new(atomic.Int64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(30 * time.Second)) // no broken check hangs
			r, err := http.ReadRequest(bufio.NewReader(conn))
			if err == nil {
				io.Copy(io.Discard, r.Body)
				say(writerFunc(func(b []byte) (int, error) {
					n, err := conn.Write(b)
					sent.Add(int64(n))
					return n, err
				}))
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	c := config(nil)
	c.BaseURL = "http://" + listener.Addr().String()
	return provider(t, c), sent
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// forever writes b until the client has gone, or took far too much.
func forever(w io.Writer, b string) error {
	block := []byte(strings.Repeat(b, 1+(32<<10)/len(b)))
	for range (64 << 20) / len(block) {
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// mustBePassing fails the test unless err is one that a person can read, and that ends no login.
func mustBePassing(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, brokerauth.ErrUnavailable) || errors.Is(err, brokerauth.ErrLoginRequired) || errors.Is(err, brokerauth.ErrRejected) {
		t.Errorf("%v, want ErrUnavailable", err)
		return
	}
	e := brokerError(t, err)
	texts := e.Error() + e.Code + e.Description + e.Hint
	if e.Err != nil {
		texts += e.Err.Error()
	}
	if strings.ContainsFunc(texts, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		t.Errorf("the error is not fit for a terminal: %q", texts)
	}
	if len(texts) > 4<<10 {
		t.Errorf("the error is %d bytes long", len(texts))
	}
}

// TestHostileEndless: nothing that a broker sends without an end is taken without an end.
func TestHostileEndless(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	zeros := func() []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(make([]byte, 16<<20))
		z.Close()
		return b.Bytes() // members of a gzip file may follow each other
	}()
	for name, say := range map[string]func(w io.Writer) error{
		"a status line": func(w io.Writer) error { io.WriteString(w, "HTTP/1.1 200 "); return forever(w, "O") },
		"a header":      func(w io.Writer) error { io.WriteString(w, ok+"X: "); return forever(w, "x") },
		"headers": func(w io.Writer) error {
			io.WriteString(w, ok)
			return forever(w, "X-Y: "+strings.Repeat("z", 100)+"\r\n")
		},
		"interim answers":    func(w io.Writer) error { return forever(w, "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n") },
		"a body":             func(w io.Writer) error { io.WriteString(w, ok+"\r\n"); return forever(w, " ") },
		"a body of a string": func(w io.Writer) error { io.WriteString(w, ok+"\r\n{\"access_token\":\""); return forever(w, "x") },
		"a refusal":          func(w io.Writer) error { io.WriteString(w, "HTTP/1.1 400 No\r\n\r\n"); return forever(w, "[") },
		"chunks": func(w io.Writer) error {
			io.WriteString(w, ok+"Transfer-Encoding: chunked\r\n\r\n")
			return forever(w, "40\r\n"+strings.Repeat(" ", 64)+"\r\n")
		},
		"a chunk's extension": func(w io.Writer) error {
			io.WriteString(w, ok+"Transfer-Encoding: chunked\r\n\r\n1;x=")
			return forever(w, "y")
		},
		"trailers": func(w io.Writer) error {
			io.WriteString(w, ok+"Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\n{}\r\n0\r\n")
			return forever(w, "X: yyyyyyyyyyyyyyyyyyyy\r\n")
		},
		"a gzip bomb": func(w io.Writer) error {
			io.WriteString(w, ok+"Content-Encoding: gzip\r\n\r\n")
			return forever(w, string(zeros))
		},
		"a gzip bomb as refusal": func(w io.Writer) error {
			io.WriteString(w, "HTTP/1.1 401 No\r\nContent-Encoding: gzip\r\n\r\n")
			return forever(w, string(zeros))
		},
		"a gzip header": func(w io.Writer) error {
			io.WriteString(w, ok+"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x00")
			return forever(w, "n") // the name of a file
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, sent := hostile(t, say)
			_, err := p.Refresh(t.Context(), old)
			mustBePassing(t, err)
			// What was read is 1 MiB at most; what the system has buffered on the way is not ours. There are 64.
			if n := sent.Load(); n > 48<<20 {
				t.Errorf("%d MiB were taken", n>>20)
			}
		})
	}
}

// TestHostileDrip: whatever part of an answer does not end, the call ends with its context and lets go of the connection.
func TestHostileDrip(t *testing.T) {
	for name, start := range map[string]string{
		"no answer": "", "status line": "HTTP/1.1 2", "header": "HTTP/1.1 200 OK\r\nX: ", "body": "HTTP/1.1 200 OK\r\n\r\n{\"access_token\":\"",
		"chunked body": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1",
		"gzip":         "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b", "refusal": "HTTP/1.1 400 No\r\nContent-Length: 100000\r\n\r\n",
		"redirect":         "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 100000\r\n\r\n",
		"another protocol": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			// On a busy machine the call may be over before its broker has begun. Then the next has more time.
			met := false
			for left := 200 * time.Millisecond; !met && left < time.Minute; left *= 2 {
				met = drips(t, start, left)
			}
			if !met {
				t.Error("no call has met the broker")
			}
		})
	}
}

// drips lets a call that has so much time left meet an answer which drips after its start, and reports whether it did.
func drips(t *testing.T, start string, left time.Duration) (met bool) {
	t.Helper()
	begun, gone := make(chan struct{}), make(chan struct{})
	p, _ := hostile(t, func(w io.Writer) error {
		close(begun)
		defer close(gone)
		if _, err := io.WriteString(w, start); err != nil {
			return err
		}
		for {
			if _, err := io.WriteString(w, "0"); err != nil {
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), left)
	defer cancel()
	returned := make(chan error, 1)
	go func() {
		_, err := p.Refresh(ctx, old)
		returned <- err
	}()
	select {
	case err := <-returned:
		mustBePassing(t, err)
	case <-time.After(left + time.Minute):
		t.Fatal("the call still waits")
	}
	select {
	case <-begun:
	default:
		return false
	}
	select {
	case <-gone:
	case <-time.After(time.Minute):
		t.Error("the connection is still open")
	}
	return true
}

// TestHostileAnswers: an answer that is wrong in some way is an error that a person can read, and no login ends by it.
func TestHostileAnswers(t *testing.T) {
	const token = `{"access_token":"A1","refresh_token":"R1"}`
	answer := func(status, body string, headers ...string) string {
		return "HTTP/1.1 " + status + "\r\n" + strings.Join(append(headers, ""), "\r\n") + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)) + body
	}
	for name, said := range map[string]string{
		"nothing":                     "",
		"noise":                       "\x00\x01\x02\x1b[31m\r\n\r\n",
		"another protocol":            "SSH-2.0-\x1b]0;owned\x07\r\n",
		"TLS":                         "\x15\x03\x01\x00\x02\x02\x46",
		"a coloured status":           "HTTP/1.1 \x1b[31m200 OK\r\n\r\n" + token,
		"a coloured version":          "HTTP/1.\x1b[1m1 200 OK\r\n\r\n" + token,
		"a coloured header":           "HTTP/1.1 200 OK\r\n\x1b[31mX\r\n\r\n" + token,
		"a coloured length":           "HTTP/1.1 200 OK\r\nContent-Length: \x1b[31m9\r\n\r\n" + token,
		"two lengths":                 "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Length: 12\r\n\r\n" + token,
		"an answer that breaks off":   "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + token[:len(token)-1],
		"a refusal that breaks off":   "HTTP/1.1 400 No\r\nContent-Length: 9999\r\n\r\n" + token,
		"a length that is too small":  "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + token,
		"a negative length":           "HTTP/1.1 200 OK\r\nContent-Length: -9\r\n\r\n" + token,
		"an unknown encoding":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: x-y\r\n\r\n" + token,
		"a chunk of no number":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\x1b[31m\r\n" + token,
		"gzip that is none":           answer("200 OK", token, "Content-Encoding: gzip"),
		"gzip that breaks off":        answer("200 OK", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\xaa\x56", "Content-Encoding: gzip"),
		"a packing that nobody wants": answer("200 OK", "\x28\xb5\x2f\xfd\x04\x00", "Content-Encoding: zstd"),
		"no content":                  "HTTP/1.1 204 No Content\r\n\r\n",
		"a megabyte of headers":       "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n" + token,
		"not modified":                "HTTP/1.1 304 Not Modified\r\n\r\n",
		"a redirect to nowhere":       answer("302 Found", token),
		"a redirect to noise":         answer("302 Found", token, "Location: https://\x1b[31m.example.com/%zz"),
		"a redirect to a secret":      answer("302 Found", token, "Location: https://"+old.AccessToken+".example.com/"),
		"another status":              answer("299 \x1b[31mFine", `{"error":"conformance"}`),
		"status 999":                  answer("999 Nine", token),
		"another protocol's switch":   "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + token,
		"coloured JSON":               answer("400 No", `{"error":"\u001b[31mno","error_description":"a\u001b]0;owned\u0007\r\nb\u009bc\u202ed\u2028e"}`),
		"coloured page":               answer("403 No", "<html><title>\x1b[31m&#27;[2J&#x9b;no&#8238;</title>", "Content-Type: text/html"),
		"coloured form":               answer("400 No", "error=%1b%5b31m&error_description=%07%0d%0aX%c2%9b"),
		"coloured text":               answer("500 No", "\x1b[2J\x1b[H", "Retry-After: \x1b[31m", "Content-Type: \x1b"),
		"200 and an unknown error":    answer("200 OK", `{"error":"temporarily_unavailable","error_description":"\u001b[0m"}`),
		"200 and an error in words":   answer("200 OK", `{"error":{"message":"try again \u001b[5m"},"access_token":"A1"}`),
		"200 and a page":              answer("200 OK", "<!doctype html><title>\x1b[31mSign in</title>", "Content-Type: text/html"),
		"200 and a token with colour": answer("200 OK", `{"access_token":"A\u001b[31m"}`),
		"deep JSON":                   answer("400 No", strings.Repeat(`{"error":[`, 3000)),
		"deep JSON, well-formed":      answer("400 No", strings.Repeat(`{"errors":[`, 3000)+strings.Repeat(`]}`, 3000)),
		"wide JSON":                   answer("400 No", `{"errors":["`+strings.Repeat(`{\"error\":\"x\"}","`, 3000)+`"]}`),
		"deep JSON, as a token":       answer("200 OK", `{"access_token":`+strings.Repeat("[", 500_000)),
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := hostile(t, func(w io.Writer) error { _, err := io.WriteString(w, said); return err })
			token, err := p.Refresh(t.Context(), old)
			if token != nil {
				t.Errorf("a token: %v", token)
			}
			mustBePassing(t, err)
			if errors.Is(err, context.DeadlineExceeded) {
				t.Error("the call waited until its time was over")
			}
			if err != nil && (strings.Contains(err.Error(), old.AccessToken) || strings.Contains(err.Error(), "A1")) {
				t.Errorf("the error tells a token: %v", err)
			}
		})
	}
}

// TestHostileButGood: what is odd and does no harm costs no grant.
func TestHostileButGood(t *testing.T) {
	const token = `{"access_token":"A1","refresh_token":"R1"}`
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	io.WriteString(z, token)
	z.Close()
	for name, said := range map[string]string{
		"HTTP/1.0 without a length":  "HTTP/1.0 200 OK\r\n\r\n" + token,
		"no reason":                  "HTTP/1.1 200\r\n\r\n" + token,
		"a coloured reason":          "HTTP/1.1 200 \x1b[31mOK\r\n\r\n" + token,
		"another good status":        "HTTP/1.1 201 Created\r\n\r\n" + token,
		"an interim answer":          "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + token,
		"large headers":              "HTTP/1.1 200 OK\r\nSet-Cookie: " + strings.Repeat("c", 40<<10) + "\r\nX: " + strings.Repeat("x", 40<<10) + "\r\n\r\n" + token,
		"a type of pages":            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + token,
		"a type of nothing":          "HTTP/1.1 200 OK\r\nContent-Type: \x80;;\r\nContent-Disposition: attachment\r\n\r\n" + token,
		"gzip":                       "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + packed.String(),
		"chunks":                     fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(token), token),
		"more after the end":         fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sHTTP/1.1 500 No\r\n\r\n", len(token), token),
		"a cookie and a refresh":     "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nRefresh: 0; url=http://127.0.0.1:1/\r\n\r\n" + token,
		"a line before":              "HTTP/1.1 200 OK\r\n\r\n\ufeff\r\n" + token,
		"a length that is too large": "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + token,
		"a chunk that is too short":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n" + token,
		"a type with a space":        "HTTP/1.1 200 OK\r\n\r\n" + `{"token_type":"Bearer ",` + token[1:],
		"a type that is none":        "HTTP/1.1 200 OK\r\n\r\n" + `{"token_type":"a b\n",` + token[1:],
		"an error that says nothing": "HTTP/1.1 200 OK\r\n\r\n" + `{"error":[],"error_code":0,` + token[1:],
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := hostile(t, func(w io.Writer) error { _, err := io.WriteString(w, said); return err })
			got, err := p.Refresh(t.Context(), old)
			if err != nil || got.AccessToken != "A1" || got.RefreshToken != "R1" {
				t.Fatalf("%v, %v, want the token", got, err)
			}
			if got.TokenType != "" && got.TokenType != "Bearer" { // it goes into a header
				t.Errorf("the type %q", got.TokenType)
			}
		})
	}
}
