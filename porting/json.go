package porting

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/brokerauth/brokerauth"
)

// maxDepth is how deep JSON may nest; the formats nest three deep.
const maxDepth = 16

// parse reads data as one JSON value. encoding/json alone would take the last of two equal keys, which the library that
// wrote the file may not have meant; and its errors quote what they read.
func parse(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := value(d, 0)
	if err == nil {
		if _, end := d.Token(); end != io.EOF {
			err = errors.New("something follows the JSON value")
		}
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("it is no JSON, or cut short, at byte %d", d.InputOffset())
		if bytes.Contains(data, []byte("NaN")) || bytes.Contains(data, []byte("Infinity")) {
			err = fmt.Errorf("%w; Python's NaN and Infinity are no JSON", err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the file is damaged, or of no known format: %w: %w", err, brokerauth.ErrCorrupt)
	}
	return v, nil
}

func value(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("it nests too deep")
	}
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		fields := make(map[string]any)
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			key, _ := name.(string) // Token takes nothing else there
			if _, twice := fields[key]; twice {
				return nil, errors.New("one object has the same key twice")
			}
			if fields[key], err = value(d, depth+1); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return fields, err
	case json.Delim('['):
		var list []any
		for d.More() {
			v, err := value(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	return token, nil
}

// object reads the fields of a JSON object, and keeps the first error. A field that is missing or null is zero.
type object struct {
	fields map[string]any
	err    error
}

func (r *object) has(names ...string) bool {
	for _, name := range names {
		if _, ok := r.fields[name]; !ok {
			return false
		}
	}
	return true
}

// fail keeps the first error. Only names of fields that this package knows come here.
func (r *object) fail(name, what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s %s", name, what)
	}
}

func (r *object) text(name string) string {
	switch v := r.fields[name].(type) {
	case nil:
	case string:
		return v
	default:
		r.fail(name, "is no text")
	}
	return ""
}

func (r *object) boolean(name string) bool {
	switch v := r.fields[name].(type) {
	case nil:
	case bool:
		return v
	default:
		r.fail(name, "is neither true nor false")
	}
	return false
}

func (r *object) number(name string) float64 {
	switch v := r.fields[name].(type) {
	case nil:
	case json.Number:
		if x, err := v.Float64(); err == nil && !math.IsInf(x, 0) {
			return x
		}
		r.fail(name, "is out of range")
	default:
		r.fail(name, "is no number")
	}
	return 0
}

// epoch reads a time in seconds since 1970; 0 is unknown.
func (r *object) epoch(name string) time.Time {
	x := r.number(name)
	if x == 0 {
		return time.Time{}
	}
	if x < 946684800 || x > 4102444800 { // the years 2000 and 2100: milliseconds are far beyond
		r.fail(name, "is no time in seconds since 1970")
		return time.Time{}
	}
	whole, part := math.Modf(x)
	return time.Unix(int64(whole), int64(part*1e9))
}

// seconds reads a duration of at most ten years.
func (r *object) seconds(name string) time.Duration {
	x := r.number(name)
	if x < 0 || x > 10*365*86400 {
		r.fail(name, "is no lifetime in seconds")
		return 0
	}
	return time.Duration(x * float64(time.Second))
}

// date reads a time as RFC 3339, Python's isoformat or its strftime with %z has it; one without a zone is taken to be in zone.
func (r *object) date(name string, zone *time.Location) (at time.Time, zoned bool) {
	s := r.text(name)
	if s == "" {
		return time.Time{}, true
	}
	s = strings.Replace(s, " ", "T", 1)
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		at, err = time.Parse("2006-01-02T15:04:05-0700", s)
	}
	if zoned = err == nil; !zoned {
		at, err = time.ParseInLocation("2006-01-02T15:04:05", s, zone)
	}
	switch {
	case err == nil && at.IsZero():
		return time.Time{}, true // how Go writes no time
	case err != nil || at.Year() < 2000 || at.Year() > 2100:
		r.fail(name, "is no date and time")
		return time.Time{}, true
	}
	return at, zoned
}

// nested returns a field that is an object, and knows r's error.
func (r *object) nested(name string) *object {
	fields, ok := r.fields[name].(map[string]any)
	if !ok && r.fields[name] != nil {
		r.fail(name, "is no object")
	}
	return &object{fields: fields, err: r.err}
}
