package authcode

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/brokerauth/brokerauth"
)

// refused is the error for an answer that is no token.
func (c *call) refused(status int, a answer) *brokerauth.Error {
	e := &brokerauth.Error{Provider: c.Info.Name, Op: c.op, Status: status}
	texts := a.texts
	if len(a.codes) > 0 {
		e.Code = c.scrub(a.codes[0])
		texts = slices.Concat(a.codes[1:], texts)
	}
	var description []string
	for _, text := range texts {
		if text = c.scrub(text); text != "" && text != e.Code && !slices.Contains(description, text) {
			description = append(description, text)
		}
	}
	e.Description = clean(strings.Join(description, ": "))

	e.Kind = brokerauth.ErrUnavailable
	switch passing := a.html || status == 408 || status == 429 || status >= 500 || a.status >= 500; {
	case passing:
		e.Hint = "the broker cannot answer now" + c.again()
		if status == 429 {
			e.Hint = "the broker was asked too often" + c.again()
		} else if a.html {
			e.Hint = "a gateway or proxy answered in the broker's place" + c.again()
		}
		if rule := c.rule(status, a); rule != nil {
			e.Hint = cmp.Or(rule.Hint, e.Hint)
		}
		return e
	case slices.Contains(a.codes, "invalid_grant"):
		e.Kind = brokerauth.ErrLoginRequired
	case slices.Contains(a.codes, "invalid_client"), slices.Contains(a.codes, "unauthorized_client"):
		e.Kind = brokerauth.ErrRejected
	}
	if rule := c.rule(status, a); rule != nil {
		e.Hint = rule.Hint
		if rule.Kind != nil {
			e.Kind = rule.Kind
		}
	}
	if e.Kind == brokerauth.ErrLoginRequired && c.Grant != "" {
		e.Kind = brokerauth.ErrRejected
	}
	if e.Hint == "" {
		e.Hint = c.hint(status, e.Kind)
	}
	return e
}

// rule returns the first that fits, or nil.
func (c *call) rule(status int, a answer) *Rule {
	said := strings.ToLower(strings.Join(slices.Concat(a.codes, a.texts, []string{html.UnescapeString(a.raw)}), "\n"))
	for i := range c.Rules {
		r := &c.Rules[i]
		if (r.Op == "" || r.Op == c.op) && (r.Status == 0 || r.Status == status) &&
			(r.Code == "" || slices.Contains(a.codes, r.Code)) && strings.Contains(said, strings.ToLower(r.Contains)) {
			return r
		}
	}
	return nil
}

// hint says what to do about a refusal of which the broker's rules say nothing.
func (c *call) hint(status int, kind error) string {
	switch {
	case kind == brokerauth.ErrUnavailable && status/100 == 2:
		return "the answer holds no access token" + c.again()
	case kind == brokerauth.ErrUnavailable:
		return "the broker refuses for a reason that is not known to be final" + c.again()
	case kind == brokerauth.ErrRejected && c.Grant != "":
		return "compare client id and secret with the broker's website, and create a new grant there if they are right"
	case kind == brokerauth.ErrRejected:
		return "compare client id and secret with the broker's developer portal"
	case c.op == "login":
		return "the code is too old, was used before, or is damaged: log in again, and come back at once"
	}
	return c.ended(time.Now())
}

// ended tells from the old token's clocks why a login may have ended.
func (c *call) ended(now time.Time) string {
	since, until := c.old.LoggedInAt, c.old.LoginBy
	switch age := now.Sub(since); {
	case !until.IsZero() && !now.Before(until):
		over := "the time of this login is over"
		if c.LoginLife > 0 {
			over = "the " + span(c.LoginLife) + " of this login are over"
		}
		if !since.IsZero() {
			over += since.UTC().Format(" (you logged in Mon 2 Jan 15:04 UTC)")
		}
		return over + "; log in again"
	case since.IsZero() || age < 0:
		return "this login has ended; log in again"
	default:
		cause := cmp.Or(c.EarlyEnd, "another program or machine logged in, or the password changed")
		return "this login ended after " + span(age) + ", early: usually " + cause + "; log in again"
	}
}

// span spells a duration in its two largest units.
func span(d time.Duration) string {
	days, hours, minutes := d/(24*time.Hour), d%(24*time.Hour)/time.Hour, d%time.Hour/time.Minute
	switch {
	case days > 1 && hours == 0:
		return strconv.Itoa(int(days)) + " days"
	case days > 0:
		return fmt.Sprintf("%d d %d h", days, hours)
	case hours > 0:
		return fmt.Sprintf("%d h %d min", hours, minutes)
	}
	if minutes == 0 {
		return "less than a minute"
	}
	return fmt.Sprintf("%d min", minutes)
}

// answer is what can be told from an error's body.
type answer struct {
	codes  []string // the broker's error codes, outermost first
	texts  []string // what it says to people
	status int      // an HTTP status that the body claims, at odds with the answer's own now and then
	html   bool     // a page, not the broker's program
	raw    string   // the body, for rules only: it is never shown
}

// pattern compiles when it is first needed, which is after a refusal: a command that only prints a token does not wait.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

var (
	codelike = pattern(`^[A-Za-z0-9_.:-]{1,64}$`)
	heading  = pattern(`(?is)<(?:title|h1)[^>]*>(.*?)</(?:title|h1)`)
	tag      = pattern(`<[^>]*>`)
	escape   = pattern(`%[0-9A-F]{2}`)
)

// readAnswer reads an error's body in every shape that brokers and the gateways before them have sent: JSON of many
// makes, also inside a string of other JSON, a form, and HTML.
func readAnswer(body []byte) answer {
	body = body[:min(len(body), maxRefusal)]
	a := answer{raw: string(body)}
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\ufeff")))
	if bytes.HasPrefix(body, []byte("<")) {
		a.html = true
		for _, m := range heading().FindAllSubmatch(body, 2) {
			a.text(html.UnescapeString(tag().ReplaceAllString(string(m[1]), " ")), 0)
		}
		return a
	}
	if a.nested(string(body), 0) {
		return a
	}
	if form, err := url.ParseQuery(string(body)); err == nil && form.Has("error") {
		a.value(map[string]any{"error": form.Get("error"), "error_description": form.Get("error_description")}, 0)
	}
	return a
}

const (
	maxDepth = 6 // how deep an answer is looked into
	maxSaid  = 8 // codes, and texts, of one answer worth showing
)

// nested reads JSON that stands somewhere in s and reports whether there was any. Quotes of JSON in a string may be
// bare, which spoils the JSON around it: then only the inner one is read.
func (a *answer) nested(s string, depth int) bool {
	for ; depth < maxDepth; depth++ {
		from, to := strings.IndexByte(s, '{'), strings.LastIndexByte(s, '}')
		if from < 0 || to < from {
			return false
		}
		var v any
		d := json.NewDecoder(strings.NewReader(s[from : to+1]))
		d.UseNumber()
		if d.Decode(&v) == nil {
			a.value(v, depth+1)
			return true
		}
		s = s[from+1 : to]
	}
	return false
}

// value collects what v, an answer or a part of one, says.
func (a *answer) value(v any, depth int) {
	if depth > maxDepth {
		return
	}
	switch v := v.(type) {
	case string:
		a.text(v, depth)
	case []any:
		for _, item := range v {
			a.value(item, depth+1)
		}
	case map[string]any:
		for _, name := range []string{"error", "error_code", "code", "errorcode", "errorCode"} {
			field := v[name]
			if n, ok := field.(json.Number); ok {
				field = n.String()
			}
			if s, ok := field.(string); ok && codelike().MatchString(s) && len(a.codes) < maxSaid {
				a.codes = append(a.codes, s)
			} else {
				a.value(field, depth+1) // such as a sentence where a code should be
			}
		}
		for _, name := range []string{"error_description", "message", "title", "detail", "reason", "faultstring", "fault", "errors"} {
			a.value(v[name], depth+1)
		}
		status, _ := strconv.Atoi(fmt.Sprint(v["status"]))
		a.status = max(a.status, status)
	}
}

// text takes what is said to people, or the JSON in it.
func (a *answer) text(s string, depth int) {
	if len(a.texts) < maxSaid && !a.nested(s, depth) && strings.TrimSpace(s) != "" {
		a.texts = append(a.texts, s)
	}
}

// scrub makes text from outside fit to be shown.
func (c *call) scrub(s string) string {
	secrets := append([]string{c.ClientSecret, c.Grant}, c.secrets...)
	if c.ClientSecret != "" {
		secrets = append(secrets, url.QueryEscape(c.ClientID)+":"+url.QueryEscape(c.ClientSecret)) // as Basic has it
	}
	return scrub(s, secrets)
}

// quietError is an error from outside with a text fit to be shown. What it is can be found, but not unwrapped: the texts
// beneath are as they came.
type quietError struct {
	text string
	err  error
}

func (e *quietError) Error() string        { return e.text }
func (e *quietError) Is(target error) bool { return errors.Is(e.err, target) }
func (e *quietError) As(target any) bool   { return errors.As(e.err, target) }

var (
	named    = pattern(`(?i)(\w*(?:token|digest|secret|password|signature|session|cookie|jwt|code|state)\w*)=[^\s,;&\[\](){}"']+`)
	userinfo = pattern(`//[^/\s@]*@`)
	long     = pattern(`[A-Za-z0-9_.~+/@%-]{24,}=*`)
	words    = pattern(`^[./_-]*[A-Za-z][a-z]{0,15}([A-Z][a-z]{1,15})*([./_-]+([A-Za-z][a-z]{0,15}([A-Z][a-z]{1,15})*|v?[0-9]))*[./]*$`)
)

// scrub removes secrets, whatever their form, and what looks like one from text that is about to be shown.
func scrub(s string, secrets []string) string {
	const redacted = "REDACTED"
	s = s[:min(len(s), 2<<10)]
	const (
		window = 8 // so much of a secret is too much
		least  = 4 // what is shorter is no secret, and removing it would spoil other words
	)
	windows := make(map[string]bool)
	for _, secret := range secrets {
		if len(secret) < least {
			continue
		}
		for _, form := range forms(secret) {
			for i := 0; i == 0 || i+window <= len(form); i++ {
				windows[form[i:min(i+window, len(form))]] = true
			}
		}
	}
	hide := make([]bool, len(s))
	for i := range len(s) {
		for n := range window {
			if end := i + n + 1; end <= len(s) && windows[s[i:end]] {
				for j := i; j < end; j++ {
					hide[j] = true
				}
			}
		}
	}
	var b strings.Builder
	for i := range len(s) {
		if !hide[i] {
			b.WriteByte(s[i])
		} else if i == 0 || !hide[i-1] {
			b.WriteString(redacted)
		}
	}
	s = named().ReplaceAllString(b.String(), "${1}="+redacted)
	s = long().ReplaceAllStringFunc(s, func(run string) string {
		if words().MatchString(run) {
			return run
		}
		return redacted
	})
	return clean(userinfo().ReplaceAllString(s, "//"+redacted+"@"))
}

// forms returns the ways a secret may be spelled in an answer.
func forms(secret string) []string {
	lower := func(s string) string { return escape().ReplaceAllStringFunc(s, strings.ToLower) }
	query, path := url.QueryEscape(secret), url.PathEscape(secret)
	return []string{
		secret, query, path, lower(query), lower(path),
		base64.RawStdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)),
	}
}

// clean makes text from outside fit for a terminal and a log line.
func clean(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
