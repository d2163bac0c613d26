package main

import (
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth/internal/guide"
)

// The docs have what a login that nobody came back from prints.
func TestTroubleshootingStuck(t *testing.T) {
	lines := []string{"```text"}
	for _, b := range brokers() {
		if b.stuck != "" {
			lines = append(lines, strings.TrimSuffix(b.stuck, "\n"))
		}
	}
	guide.Check(t, "../../docs/troubleshooting.md", "stuck", append(lines, "```"))
}
