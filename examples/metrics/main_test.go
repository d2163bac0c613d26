package main

import (
	"context"
	"encoding/json"
	"expvar"
	"testing"
	"time"
)

func TestMetrics(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	all := new(expvar.Map)
	go func() { done <- run(ctx, "127.0.0.1:0", all) }()
	var vars struct {
		Events map[string]int
		Left   map[string]float64 `json:"login_seconds_left"`
	}
	for end := time.Now().Add(30 * time.Second); vars.Events["refreshed"] == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 30 seconds no refresh was counted: %s", all)
		}
		if err := json.Unmarshal([]byte(all.String()), &vars); err != nil {
			t.Fatal(err)
		}
	}
	if vars.Events["login"] != 1 || len(vars.Left) != 1 {
		t.Errorf("%+v, want one login", vars)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
