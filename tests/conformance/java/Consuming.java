import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.consumer.ConsumeResult;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.consumer.FilterExpressionType;
import org.apache.rocketmq.client.apis.consumer.PushConsumer;
import org.apache.rocketmq.client.apis.consumer.SimpleConsumer;
import org.apache.rocketmq.client.apis.message.MessageView;

/**
 * A consumer as a user of the official client for Java writes one; see ../main.rs for what it has to do and say.
 *
 * <p>Usage: Consuming ADDRESS plain|tls simple|push GROUP TOPIC tag|sql EXPRESSION
 */
public class Consuming {
    static final Duration POLL = Duration.ofSeconds(5);
    static final ClientServiceProvider PROVIDER = ClientServiceProvider.loadService();
    static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    static final Map<String, Integer> CALLS = new ConcurrentHashMap<>();

    interface Call {
        void run() throws Exception;
    }

    public static void main(String[] args) throws Exception {
        ClientConfiguration configuration =
            ClientConfiguration.newBuilder().setEndpoints(args[0]).enableSsl(args[1].equals("tls")).build();
        FilterExpressionType type = args[5].equals("sql") ? FilterExpressionType.SQL92 : FilterExpressionType.TAG;
        Map<String, FilterExpression> wanted =
            Collections.singletonMap(args[4], new FilterExpression(args[6], type));
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        if (args[2].equals("simple")) {
            SimpleConsumer consumer = PROVIDER.newSimpleConsumerBuilder()
                .setClientConfiguration(configuration)
                .setConsumerGroup(args[3])
                .setAwaitDuration(POLL)
                .setSubscriptionExpressions(wanted)
                .build();
            say("{\"kind\":\"started\"}");
            obey(consumer, input);
            consumer.close();
        } else {
            PushConsumer consumer = PROVIDER.newPushConsumerBuilder()
                .setClientConfiguration(configuration)
                .setConsumerGroup(args[3])
                .setSubscriptionExpressions(wanted)
                .setMessageListener(Consuming::consume)
                .build();
            say("{\"kind\":\"started\"}");
            input.readLine();
            consumer.close();
        }
        say("{\"kind\":\"ended\"}");
        System.exit(0);
    }

    static ConsumeResult consume(MessageView message) {
        int calls = CALLS.merge(message.getMessageId().toString(), 1, Integer::sum);
        boolean fails = calls <= Integer.parseInt(message.getProperties().getOrDefault("fails", "0"));
        say(shown(message, ",\"failed\":" + fails));
        return fails ? ConsumeResult.FAILURE : ConsumeResult.SUCCESS;
    }

    static void obey(SimpleConsumer consumer, BufferedReader input) throws Exception {
        Map<String, MessageView> held = new HashMap<>();
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            if (words[0].equals("receive")) {
                List<MessageView> messages = List.of();
                try {
                    messages = consumer.receive(
                        Integer.parseInt(words[1]), Duration.ofSeconds(Integer.parseInt(words[2])));
                } catch (Exception error) {
                    say("{\"kind\":\"failed\",\"why\":" + text(error.toString()) + "}");
                }
                for (MessageView message : messages) {
                    held.put(message.getMessageId().toString(), message);
                    say(shown(message, ""));
                }
                say("{\"kind\":\"received\",\"count\":" + messages.size() + "}");
            } else if (words[0].equals("ack")) {
                tried("acked", () -> consumer.ack(held.get(words[1])));
            } else if (words[0].equals("change")) {
                tried("changed", () -> consumer.changeInvisibleDuration(
                    held.get(words[1]), Duration.ofSeconds(Integer.parseInt(words[2]))));
            } else {
                return;
            }
        }
    }

    static void tried(String kind, Call call) {
        try {
            call.run();
            say("{\"kind\":\"" + kind + "\",\"ok\":true}");
        } catch (Exception error) {
            say("{\"kind\":\"" + kind + "\",\"ok\":false,\"why\":" + text(error.toString()) + "}");
        }
    }

    static String shown(MessageView message, String more) {
        byte[] body = new byte[message.getBody().remaining()];
        message.getBody().duplicate().get(body);
        String keys = message.getKeys().stream().sorted().map(Consuming::text).collect(Collectors.joining(","));
        String properties = message.getProperties().entrySet().stream()
            .map(one -> text(one.getKey()) + ":" + text(one.getValue()))
            .collect(Collectors.joining(","));
        return "{\"kind\":\"message\",\"id\":" + text(message.getMessageId().toString())
            + ",\"topic\":" + text(message.getTopic())
            + ",\"body\":" + text(new String(body, StandardCharsets.UTF_8))
            + ",\"tag\":" + message.getTag().map(Consuming::text).orElse("null")
            + ",\"keys\":[" + keys + "],\"properties\":{" + properties + "}"
            + ",\"group\":" + message.getMessageGroup().map(Consuming::text).orElse("null")
            + ",\"attempt\":" + message.getDeliveryAttempt() + more + "}";
    }

    static String text(String text) {
        return "\"" + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", " ") + "\"";
    }

    static synchronized void say(String line) {
        OUT.println(line);
    }
}
