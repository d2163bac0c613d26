package tastytrade

import (
	"testing"

	"github.com/brokerauth/brokerauth/internal/guide"
)

func TestTroubleshooting(t *testing.T) {
	guide.Check(t, "../../docs/troubleshooting.md", "tastytrade", guide.Rules(Config{Grant: "grant"}.rules()))
}
