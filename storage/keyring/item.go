package keyring

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/brokerauth/brokerauth"
)

// headVersion is the newest form of an item that this code reads and writes.
const headVersion = 1

// head is the item that has a record's name, in JSON. It holds the record, or says which parts do.
//
// Parts are written before the head that names them, under a name that no part ever had, and a head names all parts
// that may exist: what a killed process left is found and deleted. The parts of a replaced record stay until the next
// change, so that a reader who was about to read them need not start again.
type head struct {
	Version int     `json:"v"`
	Text    string  `json:"text,omitempty"`  // the record, where it is UTF-8
	Data    []byte  `json:"data,omitempty"`  // the record, where it is not: some keyrings keep text only
	Parts   *parts  `json:"parts,omitempty"` // the record
	Stale   []parts `json:"stale,omitempty"` // to be deleted before anything else is written
}

// parts are items that hold one record: its base64, cut in pieces.
type parts struct {
	ID    string `json:"id"` // the items are called NAME.ID.0, NAME.ID.1 and so on
	Count int    `json:"count"`
	Sum   string `json:"sum,omitempty"` // SHA-256 of the record, in hex; stale parts have none
}

// spare is more than what one stale entry adds to a head.
const spare = 80

func (p parts) name(of string, i int) string { return of + "." + p.ID + "." + strconv.Itoa(i) }

func (h *head) empty() bool {
	return h == nil || h.Text == "" && len(h.Data) == 0 && h.Parts == nil
}

func (h *head) encode() (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // it would only make the item longer
	if err := e.Encode(h); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// decodeHead reads what encode wrote. Anybody may have changed it since.
func decodeHead(text string) (*head, error) {
	var h head
	// A json error quotes what it read, so none is passed on.
	if err := json.Unmarshal([]byte(text), &h); err != nil || h.Version < 1 {
		return nil, fmt.Errorf("this item is not what brokerauth stored: %w", brokerauth.ErrCorrupt)
	}
	if h.Version > headVersion {
		return nil, fmt.Errorf("written by a newer version of brokerauth: update this one: %w", errors.ErrUnsupported)
	}
	all := h.Stale
	if h.Parts != nil {
		all = append(slices.Clone(all), *h.Parts)
	}
	for _, p := range all {
		if p.Count < 1 || p.Count > maxRecord || len(p.ID) != idLength || strings.Trim(p.ID, "abcdefghijklmnopqrstuvwxyz234567") != "" {
			return nil, fmt.Errorf("this item names parts that brokerauth never stored: %w", brokerauth.ErrCorrupt)
		}
	}
	return &h, nil
}

const idLength = 16

func newID() string { return strings.ToLower(rand.Text()[:idLength]) }

// head returns the head at name as stored and as read; a missing one is nil.
func (v *visit) head(name string) (raw string, h *head, err error) {
	raw, ok, err := v.get(name)
	if err != nil || !ok {
		return "", nil, err
	}
	h, err = decodeHead(raw)
	return raw, h, err
}

// load returns the record at name, nil if there is none, with its head as stored and as read.
func (v *visit) load(name string) (raw string, h *head, record []byte, err error) {
	for range 10 {
		before := raw
		if raw, h, err = v.head(name); err != nil {
			return raw, nil, nil, err
		}
		switch {
		case h.empty():
			return raw, h, nil, nil
		case h.Parts == nil && h.Text != "":
			return raw, h, []byte(h.Text), nil
		case h.Parts == nil:
			return raw, h, h.Data, nil
		case raw == before:
			return raw, h, nil, fmt.Errorf("parts of the record are missing or were changed: %w", brokerauth.ErrCorrupt)
		}
		if record, err := v.join(name, *h.Parts); err != nil || record != nil {
			return raw, h, record, err
		}
		// A writer may have deleted the parts since the head was read, twice over. Then there is another head.
	}
	return raw, h, nil, fmt.Errorf("the record changes all the time: %w", brokerauth.ErrUnavailable)
}

// join puts the parts together. nil: they are not all there.
func (v *visit) join(name string, p parts) ([]byte, error) {
	var text strings.Builder
	for i := range p.Count {
		part, ok, err := v.get(p.name(name, i))
		if err != nil {
			return nil, err
		}
		if text.WriteString(part); !ok || text.Len() > 2*maxRecord {
			return nil, nil
		}
	}
	record, err := base64.StdEncoding.DecodeString(text.String())
	if err != nil || sum(record) != p.Sum || len(record) == 0 {
		return nil, nil
	}
	return record, nil
}

func sum(record []byte) string {
	sum := sha256.Sum256(record)
	return hex.EncodeToString(sum[:])
}

// save replaces the record at name, whose head is old, as raw in the keyring; nil: there is none.
func (v *visit) save(name, raw string, old *head, record []byte) error {
	if old == nil {
		old = &head{Version: headVersion}
	}
	if err := v.sweep(name, old.Stale); err != nil {
		return err
	}
	new := &head{Version: headVersion}
	if utf8.Valid(record) {
		new.Text = string(record)
	} else {
		new.Data = record
	}
	if old.Parts != nil {
		new.Stale = []parts{{ID: old.Parts.ID, Count: old.Parts.Count}}
	}
	text, err := new.encode()
	if err != nil {
		return err
	}
	if len(text)+spare > v.item {
		text := base64.StdEncoding.EncodeToString(record)
		new.Text, new.Data = "", nil
		new.Parts = &parts{ID: newID(), Count: (len(text) + v.item - 1) / v.item, Sum: sum(record)}
		announced := *old
		announced.Stale = []parts{{ID: new.Parts.ID, Count: new.Parts.Count}}
		if raw, err = v.setHead(name, raw, &announced); err != nil {
			return err
		}
		for i, part := range slices.Collect(slices.Chunk([]byte(text), v.item)) {
			if err := v.set(new.Parts.name(name, i), string(part)); err != nil {
				return err
			}
		}
	}
	_, err = v.setHead(name, raw, new)
	return err
}

// setHead replaces the head at name, raw in the keyring, and returns it as stored. A keyring that keeps something else
// gets the old one back: what it kept before, it may keep again.
func (v *visit) setHead(name, raw string, h *head) (string, error) {
	text, err := h.encode()
	if err != nil {
		return "", err
	}
	err = v.set(name, text)
	if errors.Is(err, errAltered) {
		restore := func() error { return v.ring.set(name, raw) }
		if raw == "" {
			restore = func() error { return v.ring.delete(name) }
		}
		_ = v.call(restore) // there is nothing else to try
	}
	return text, err
}

// sweep deletes parts.
func (v *visit) sweep(name string, stale []parts) error {
	for _, p := range stale {
		for i := range p.Count {
			if err := v.call(func() error { return v.ring.delete(p.name(name, i)) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// erase deletes the record at name, whose head is h, with all its parts.
func (v *visit) erase(name string, h *head) error {
	if h == nil {
		return nil
	}
	all := h.Stale
	if h.Parts != nil {
		all = append(slices.Clone(all), parts{ID: h.Parts.ID, Count: h.Parts.Count})
	}
	if len(all) > 0 {
		// Readers must not find a record whose parts are gone, nor a killed process leave parts that no head names.
		text, err := (&head{Version: headVersion, Stale: all}).encode()
		if err != nil {
			return err
		}
		if err := v.set(name, text); err != nil {
			return err
		}
		if err := v.sweep(name, all); err != nil {
			return err
		}
	}
	return v.delete(name)
}

// forget deletes the record at name, whose head is h, what was set aside of it, and its place in the index.
func (v *visit) forget(name string, h *head) error {
	if err := v.erase(name, h); err != nil {
		return err
	}
	names, err := v.names()
	if err != nil && !errors.Is(err, brokerauth.ErrCorrupt) {
		return err
	}
	for _, bad := range names {
		if !strings.HasPrefix(bad, name+aside) {
			continue
		}
		_, h, err := v.head(bad)
		if err != nil && !errors.Is(err, brokerauth.ErrCorrupt) {
			return err
		}
		if h != nil {
			// Parts keep the name that they were written under.
			if err := v.sweep(name, h.Stale); err != nil {
				return err
			}
			if h.Parts != nil {
				if err := v.sweep(name, []parts{*h.Parts}); err != nil {
					return err
				}
			}
		}
		if err := v.delete(bad); err != nil {
			return err
		}
	}
	return v.index(func(names []string) []string {
		return slices.DeleteFunc(names, func(n string) bool { return n == name || strings.HasPrefix(n, name+aside) })
	})
}

// names returns what the index lists, sorted.
func (v *visit) names() ([]string, error) {
	_, _, record, err := v.load(indexName)
	if err != nil || record == nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(record, &names); err != nil {
		return nil, fmt.Errorf("this is no list of logins that brokerauth stored: %w", brokerauth.ErrCorrupt)
	}
	return names, nil
}

// index changes what the index lists. One that cannot be read is begun anew: it holds no login, and must not keep
// anybody from logging in.
func (v *visit) index(change func(names []string) []string) error {
	names, err := v.names()
	if err != nil && !errors.Is(err, brokerauth.ErrCorrupt) {
		return err
	}
	before := slices.Clone(names)
	names = change(names)
	slices.Sort(names)
	names = slices.Compact(names)
	if slices.Equal(names, before) {
		return nil
	}
	raw, h, err := v.head(indexName)
	if err != nil && !errors.Is(err, brokerauth.ErrCorrupt) {
		return err
	}
	if len(names) == 0 {
		return v.erase(indexName, h)
	}
	record, err := json.Marshal(names)
	if err != nil {
		return err
	}
	return v.save(indexName, raw, h, record)
}
